"""``hami-dra convert``: manifests with GPU keys become manifests with claims, offline."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from hami_dra.cli.configfile import config_option, read_settings
from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.convert import Conversion, convert_object
from hami_dra.policy.devices import CORES_PER_CARD
from hami_dra.policy.fit import Card, NodeCards

_MOST_BYTES: Final = 64 << 20
_MANY_SLOTS: Final = 1 << 20


def _read_sizes(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[NodeCards, ...]:
    del ctx, param
    sizes = []
    for text in (value or "").split(","):
        if not text.strip():
            continue
        if not text.strip().isdigit() or not int(text):
            raise click.BadParameter(f"{text.strip()!r} is not a number of MiB")
        sizes.append(int(text))
    return tuple((Card(size, CORES_PER_CARD, _MANY_SLOTS),) for size in sorted(set(sizes)))


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--sizes",
    "nodes",
    callback=_read_sizes,
    metavar="MIB[,MIB...]",
    help="Memory of the cluster's cards, each size once; needed for percentages of a card.",
)
@config_option
def convert(*, files: tuple[str, ...], nodes: tuple[NodeCards, ...], config: Path | None) -> None:
    """Print manifests with claims instead of GPU keys, and comments that say why.

    Reads YAML or JSON ("-" for standard input) and no cluster. What asks for no card is printed as
    it is. If anything cannot be converted nothing is printed, and the exit code is 1.
    """
    run = _Run(read_settings(config), nodes)
    chunks: list[str] = []
    for file in files:
        try:
            chunks += run.convert_text(_read_file(file), file)
        except UserError as error:
            run.errors.append(f"{file}: {error}")
    if run.errors:
        raise UserError("\n".join(run.errors))
    for index, chunk in enumerate(chunks):
        if index and not chunk.startswith("---"):
            click.echo("---")
        click.echo(chunk, nl=not chunk.endswith("\n") and index + 1 < len(chunks))


def _read_file(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    if len(raw) > _MOST_BYTES:
        raise UserError(f"is larger than {_MOST_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8") from error


@dataclass(slots=True)
class _Run:
    """One call of the command.

    Attributes:
        settings: The operator's.
        nodes: Cards of the cluster.
        errors: About objects that cannot be converted.
    """

    settings: AdmissionSettings
    nodes: tuple[NodeCards, ...]
    errors: list[str] = field(default_factory=list)
    _written: set[tuple[str, str]] = field(default_factory=set)

    def convert_text(self, text: str, file: str) -> Iterator[str]:
        """Yield what to print for one file, each part beginning with its separator.

        Raises:
            UserError: The file cannot be read as manifests.
        """
        # Imported here, so that --help stays fast.
        from hami_dra.cli.manifesttext import read_documents, write_comments, write_document  # noqa: PLC0415

        for document in read_documents(text):
            found: list[tuple[dict[str, Any], Conversion]] = []
            for place, body in _list_objects(document.body):
                try:
                    found.append((body, convert_object(body, self.settings, self.nodes)))
                except UserError as error:
                    where = f"{file}: document {document.number}{place}"
                    self.errors.append(f"{where}: {_name_object(body)}: {error}")
            if not any(conversion.changed for _, conversion in found):
                yield document.separator + document.text
                continue
            for body, conversion in found:
                for template, reasons in self._list_new(conversion):
                    title = f"hami-dra: what {_name_object(body)} asks for"
                    comments = [title, *(f"  {reason}" for reason in reasons)]
                    yield "---\n" + write_comments(comments) + write_document(template)
            body, comments = _describe(document.body, found)
            if body is document.body:
                yield (document.separator or "---\n") + write_comments(comments) + document.text
            else:
                yield "---\n" + write_comments(comments) + write_document(body)

    def _list_new(self, conversion: Conversion) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
        """Yield the templates that are not printed yet."""
        for template, reasons in conversion.templates:
            metadata = template["metadata"]
            key = (str(metadata.get("namespace", "")), str(metadata["name"]))
            if key not in self._written:
                self._written.add(key)
                yield template, reasons


def _list_objects(body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a document, those of a List one by one."""
    if not isinstance(body, dict):
        return
    items = body.get("items")
    if str(body.get("kind", "")).endswith("List") and isinstance(items, list):
        for index, item in enumerate(items):
            if isinstance(item, dict):
                yield f" items[{index}]", item
    else:
        yield "", body


def _describe(
    body: dict[str, Any], found: list[tuple[dict[str, Any], Conversion]]
) -> tuple[dict[str, Any], list[str]]:
    """Return a document's new body and what to say about it."""
    comments = []
    for before, conversion in found:
        if conversion.changed:
            names = ", ".join(str(each["metadata"]["name"]) for each, _ in conversion.templates)
            claim = f"; claims of {names} instead of GPU keys" if names else ""
            comments.append(f"hami-dra: {_name_object(before)}{claim}")
            comments += [f"  note: {note}" for note in conversion.notes]
    if len(found) == 1 and found[0][0] is body:
        return found[0][1].body, comments
    if all(conversion.body is before for before, conversion in found):
        return body, comments
    bodies = {id(before): conversion.body for before, conversion in found}
    return {**body, "items": [bodies.get(id(item), item) for item in body["items"]]}, comments


def _name_object(body: dict[str, Any]) -> str:
    metadata = body.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    name = named.get("name") or named.get("generateName") or "without a name"
    namespace = f"{named['namespace']}/" if named.get("namespace") else ""
    return f"{body.get('kind') or 'object'} {namespace}{name}"
