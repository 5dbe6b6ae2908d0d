"""Makes tests/golden/config_tree.txt: what PyYAML makes of tests/golden/config_tree.yaml, every scalar as text.

    ~/.cache/peft.c/venv/bin/python tests/golden/make_config.py
"""

import os

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))


class Loader(yaml.SafeLoader):
    """Resolves nothing but merge keys: what a scalar means is the configuration's own rule."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if tag == "tag:yaml.org,2002:merge"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def dump(value, path, out):
    if isinstance(value, dict):
        for key in sorted(value):
            dump(value[key], f"{path}.{key}", out)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            dump(item, f"{path}[{i}]", out)
    else:
        out.append(f"{path} = {value.encode().hex()}\n")


with open(f"{HERE}/config_tree.yaml", encoding="utf-8") as f:
    tree = yaml.load(f, Loader)
lines = []
dump(tree, "", lines)
with open(f"{HERE}/config_tree.txt", "w", encoding="utf-8") as f:
    f.writelines(lines)
