"""The person that a command's options name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options

if TYPE_CHECKING:
    from db.upkeep.erasure import Person

Tenant = Annotated[str | None, typer.Option(help="Everything of this tenant.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Whatever has each of these pairs."),
]


def person_of(tenant: str | None, metadata: Sequence[str] | None) -> "Person":
    """The person that the options name; a usage error if they name none."""
    from db.upkeep.erasure import Person

    if tenant is None and not metadata:
        raise typer.BadParameter("say whose: --tenant NAME, --metadata KEY=VALUE, or both")
    try:
        return Person(tenant=tenant, metadata=options.pairs("--metadata", metadata or ()))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
