# SPDX-License-Identifier: Apache-2.0
"""The kinds of value a key can have: how YAML and the command line spell them, and what is refused."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

Values = dict[str, tuple[Any, str]]  # key -> (value as written, where it was written)

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")
NOTHING_WORDS = ("", "none", "null")


def parse_flag(value: Any) -> Any:
    """True/False in every spelling people use; anything else is refused."""
    word = str(value).strip().lower()
    if word in TRUE_WORDS or value == 1:
        return True
    if word in FALSE_WORDS or value == 0:
        return False
    raise ValueError("must be True or False (also true, false, 1, 0, yes, no)")


def parse_optional(value: Any) -> Any:
    """An empty text is how a YAML file says 'not given'."""
    return None if isinstance(value, str) and value.strip().lower() in NOTHING_WORDS else value


def parse_list(value: Any, kind: type) -> Any:
    """A list, its text, or a single value."""
    if isinstance(value, str):
        value = value.strip().strip("[]()").split(",") if value.strip("[]() ") else []
    elif not isinstance(value, (list, tuple)):
        value = [value]
    try:
        return tuple(kind(str(item).strip()) for item in value)
    except ValueError:
        raise ValueError(f"must be a list of {kind.__name__} values, such as 30,60,90") from None


def parse_image_size(value: Any) -> Any:
    """One number means a square; two are height and width, each a multiple of 32."""
    sides = parse_list(value, int)
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2 or any(side < 32 or side % 32 for side in sides):
        raise ValueError("must be one or two multiples of 32 (height,width), such as 224,224: "
                         "the network halves the image five times")
    return sides


def parse_loss_scale(value: Any) -> Any:
    """A positive number, or the word 'dynamic'."""
    if str(value).strip().lower() == "dynamic":
        return "dynamic"
    try:
        scale = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise ValueError("must be a positive number or 'dynamic'")
    return scale


def check_step_limit(value: int) -> int:
    """A number of steps, or -1 for all there are."""
    if value < -1 or value == 0:
        raise ValueError("must be a positive number of steps, or -1 for all")
    return value


def parse_text(value: Any) -> Any:
    """YAML reads an unquoted 2012 as a number; a name or a path is still meant."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Choices(tuple):
    """The allowed spellings of a key; input is matched without regard to case."""

    def match(self, value: Any) -> str:
        for choice in self:
            if str(value).strip().lower() == choice.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(self)}")


def choice(*allowed: str) -> Any:
    """The type of a key that takes one of `allowed`."""
    known = Choices(allowed)
    return Annotated[str, BeforeValidator(known.match), known]


def auto_or_flag() -> Any:
    """The type of a key that takes auto or what a flag takes; its value is a text."""
    known = Choices(("auto", "True", "False"))

    def parse(value: Any) -> str:
        try:
            return str(parse_flag(value))
        except ValueError:
            return known.match(value)

    return Annotated[str, BeforeValidator(parse), known]


def choices(*allowed: str) -> Any:
    """The type of a key that takes one or several of `allowed`, separated by commas."""
    known = Choices(allowed)

    def parse(value: Any) -> tuple[str, ...]:
        named = tuple(dict.fromkeys(known.match(item) for item in parse_list(value, str)))
        if not named:
            raise ValueError(f"must be one or several of {', '.join(known)}")
        return named

    return Annotated[tuple[str, ...], BeforeValidator(parse), known]


Flag = Annotated[bool, BeforeValidator(parse_flag)]
Text = Annotated[str, BeforeValidator(parse_text)]
StepLimit = Annotated[int, AfterValidator(check_step_limit)]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: parse_text(parse_optional(value)))]
OptionalInt = Annotated[int | None, BeforeValidator(parse_optional)]
OptionalFloat = Annotated[float | None, BeforeValidator(parse_optional)]
ImageSize = Annotated[tuple[int, int], BeforeValidator(parse_image_size)]
Ints = Annotated[tuple[int, ...], BeforeValidator(lambda value: parse_list(value, int))]
Floats = Annotated[tuple[float, ...], BeforeValidator(lambda value: parse_list(value, float))]
LossScale = Annotated[float | str, BeforeValidator(parse_loss_scale)]
