"""A contract for import-linter: these modules import nothing but what is listed.

import-linter's own contracts forbid by name, which lets through what nobody thought of. This one
allows by name; besides that, only the standard library and the modules themselves may be imported:

    [[tool.importlinter.contracts]]
    type = "only"
    name = "The ABI stands on nothing of ours"
    modules = ["aiosd.abi"]
    may_import = ["msgspec"]

Each name covers what lies below it; `except_below` leaves out parts of `modules`. A module that
doesn't exist is a mistake in the contract.
"""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """Finds each direct import of `modules` that `may_import` doesn't cover."""

    type_name = "only"

    modules = fields.ListField(subfield=fields.StringField())
    except_below = fields.ListField(subfield=fields.StringField(), required=False)
    may_import = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Compare the graph with the list. `verbose` adds nothing here."""
        owners: list[str] = self.contract_options["modules"]
        apart: list[str] = self.contract_options.get("except_below", [])
        allowed = [*owners, *self.contract_options.get("may_import", [])]
        strays = [
            (importer, imported)
            for owner in owners
            for importer in sorted({owner, *graph.find_descendants(owner)})
            if not is_covered(importer, apart)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not is_covered(imported, allowed)
        ]
        return ContractCheck(kept=not strays, metadata={"strays": strays})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line for each import that isn't allowed."""
        for importer, imported in check.metadata["strays"]:
            output.print_error(f"{importer} may not import {imported}")


def is_covered(imported: str, allowed: list[str]) -> bool:
    """Tell whether a module is the standard library's, or one of `allowed`, or below one."""
    if imported.partition(".")[0] in sys.stdlib_module_names:
        return True
    return any(imported == name or imported.startswith(name + ".") for name in allowed)
