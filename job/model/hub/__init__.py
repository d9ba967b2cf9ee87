"""Vision transformers of KerasHub, built from layers of Keras alone, with the weights of KerasHub's presets."""
