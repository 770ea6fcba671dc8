"""Lists of names and settings, as they are typed on a command line."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import HarnessError


def names(option: str, values: Sequence[str]) -> list[str]:
    """Comma lists and repeats -> names, in order, once each."""
    found = [name.strip() for value in values for name in value.split(",")]
    found = list(dict.fromkeys(name for name in found if name))
    if values and not found:  # an unset shell variable, say: not a wish for the default
        raise HarnessError(f"--{option}: at least one name is needed")
    return found


def settings(pairs: Sequence[str]) -> dict[str, object]:
    """``--set facet=value --set bias=-0.2`` -> values as YAML reads them."""
    import yaml

    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise HarnessError(f"--set {pair}: of the form setting=value, as in --set bias=-0.2")
        if key in found:
            raise HarnessError(f"--set {key}: given twice")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise HarnessError(f"--set {pair}: {text!r} is no value") from None
    return found
