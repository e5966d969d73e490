"""Where an image lies in a net's input, so that what the net says of it comes back to the image's own pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """How the net's input lies on the image: its part `inside` shows the part `seen` of the image.

    Each is left, top, right, bottom, in pixels of the input and of the image. An image so narrow that letterbox leaves
    nothing of it has an empty `inside`.
    """

    inside: tuple[int, int, int, int]
    seen: tuple[float, float, float, float]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the image reached the net."""
        left, top, right, bottom = self.inside
        return right <= left or bottom <= top


def placement(resize: str, image_size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
    """Return where an image of (width, height) lies in an input of such a size, as Pillow's pad and fit place it."""
    (width, height), (input_width, input_height) = image_size, input_size
    left, top, used_width, used_height = 0, 0, input_width, input_height
    seen = (0.0, 0.0, float(width), float(height))
    is_wider = width * input_height > input_width * height  # than the input, for its height
    if resize == "letterbox":
        if is_wider:
            used_height = round(height / width * input_width)
            top = round((input_height - used_height) * 0.5)
        else:
            used_width = round(width / height * input_height)
            left = round((input_width - used_width) * 0.5)
    elif resize == "crop":
        seen_width = input_width / input_height * height if is_wider else width
        seen_height = height if is_wider else width / (input_width / input_height)
        seen_left, seen_top = (width - seen_width) * 0.5, (height - seen_height) * 0.5
        seen = (seen_left, seen_top, seen_left + seen_width, seen_top + seen_height)
    return Placement((left, top, left + used_width, top + used_height), seen)
