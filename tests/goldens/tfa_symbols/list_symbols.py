"""Lists the public symbols of tensorflow-addons 0.23, for the guide that maps them.

tensorflow-addons cannot be imported beside Keras 3: run this, and keep its output in
`symbols.txt`, where TensorFlow 2.15.1 and tensorflow-addons 0.23.0 are installed:

    python list_symbols.py > symbols.txt
"""

import inspect
import pathlib

import tensorflow_addons as tfa

PACKAGE = pathlib.Path(tfa.__file__).parent


def public_names(module):
    """What a module offers of tensorflow-addons' own, without its submodules."""
    for name, item in sorted(vars(module).items()):
        home = getattr(item, "__module__", None) or "tensorflow_addons"
        if name.startswith("_") or inspect.ismodule(item):
            continue
        if home.startswith("tensorflow_addons"):
            yield name


def main():
    print(f"# tensorflow-addons {tfa.__version__}")
    for path in sorted(PACKAGE.iterdir()):
        module = getattr(tfa, path.stem, None)
        if not path.stem.startswith("_") and inspect.ismodule(module):
            for name in public_names(module):
                print(f"tfa.{path.stem}.{name}")
    print("tfa.types")  # annotations, nothing that runs
    for name in public_names(tfa):
        print(f"tfa.{name}")


if __name__ == "__main__":
    main()
