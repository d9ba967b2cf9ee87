"""Files and objects that outlive a run. Only this package writes their final names."""
