#!/bin/sh
# Removes from installed packages what no run needs: about 0.9 GB of the CPU image. docs/decisions/0040-the-image.md has the sizes.
# The argument is the folder site-packages. What a newer version no longer contains is passed over.
set -eu
cd "$1"

# Tests, C++ headers, and files for compilers and type checkers. *_test.py only where it means a test: SciPy imports one.
find . -type d '(' -name tests -o -name include ')' -prune -exec rm -r '{}' +
find keras tensorflow tensorflow_datasets -type f -name '*_test.py' -delete
find . -type f '(' -name '*.py[ix]' -o -name '*.px[di]' ')' -delete

# TensorFlow requires libclang, but does not load it. Nothing in TensorFlow refers to the other two.
rm -rf clang/native tensorflow/compiler/mlir/stablehlo tensorflow/compiler/tf2xla/ops/_xla_ops.so

# Without these parts, pyarrow has no Flight and no file system for S3. The job reads S3 with boto3.
rm -rf pyarrow/*flight* pyarrow/*_s3*

# Descriptions of the AWS services other than S3 and signing in.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name 'sso*' ! -name sts ! -name signin -exec rm -r '{}' +

# kagglehub needs PyYAML, which works without its library. The data sets are examples of scikit-learn.
rm -rf yaml/_yaml*.so sklearn/datasets/data sklearn/datasets/images sklearn/datasets/descr

# Symbol tables serve debuggers, not the loader. In most other packages auditwheel has rewritten the libraries, and strip makes
# them unloadable.
find tensorflow pyarrow cryptography array_record -type f -name '*.so*' -exec strip --strip-unneeded '{}' +
