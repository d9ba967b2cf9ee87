"""The first commands for somebody who has nothing but the image."""

TEXT = """\
transfer-job trains an image classifier from labelled photos. IMAGE is the name of this image.

Try everything on drawn pictures; it takes about a minute and needs no network:
  docker run --rm -v results:/out IMAGE demo --out /out/demo

Check your photos, without training. The folder has one folder for each class:
  docker run --rm -v "$PWD/photos":/data:ro -v results:/out IMAGE explore --data /data --out /out/first

Train. The same command resumes after an interruption. With NVIDIA GPUs, take the GPU image and add --gpus all --shm-size 1g:
  docker run --rm -v "$PWD/photos":/data:ro -v results:/out IMAGE run --data /data --out /out/first

Copy the results out of the volume, and open first/report.html:
  docker run --rm -v results:/out --entrypoint tar IMAGE -C /out -c first | tar -x

All commands, options and exit codes:
  docker run --rm IMAGE --help
  docker run --rm IMAGE run --help"""
