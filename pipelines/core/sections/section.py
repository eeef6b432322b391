"""What all sections of params.yaml share: the frozen base class and the types of values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Two widths are a network of depth 1, seven one of depth 6.
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=7)]


class Section(BaseModel):
    """A frozen section of params.yaml: no unknown key, no default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
