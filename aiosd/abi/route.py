"""What requests say of the core that they need: fields of llm_generate and explain_route."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Route = Annotated[
    str,
    Meta(
        max_length=64,
        description="a rule of [routing], or a policy: cheapest, fastest, shortest, best; "
        "empty: as configured",
    ),
]
Features = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=32)]],
    Meta(max_length=16, description="what the core must have, such as tools, json or vision"),
]
MinContext = Annotated[
    int, Meta(ge=0, le=1 << 30, description="tokens that the core's window must have")
]
MaxPrice = (
    Annotated[
        float, Meta(ge=0, le=1e6, description="dollars that it may cost; each round, with tools")
    ]
    | None
)
MaxLatency = (
    Annotated[float, Meta(ge=0, le=1e6, description="expected seconds to the first token, at most")]
    | None
)
