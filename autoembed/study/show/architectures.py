"""An architecture, its pairs and clusters, and a bundle as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from autoembed.study.show.tables import make_table, print_table

if TYPE_CHECKING:
    import polars as pl

    from autoembed.architecture import Architecture
    from autoembed.bundle import Bundle


def show_architecture(console: Console, architecture: Architecture, title: str) -> None:
    """Prints per field how many dims its blocks keep and in how many bits, frequent values first."""
    from autoembed.budget import first_order

    few = architecture.few_bits
    kept = "dims x bits kept per block,\nfrequent to rare" if few else "dims kept per block,\nfrequent to rare"
    table = make_table(title, "field", "values", kept, "parameters", "of full", "bytes")
    own_bytes = architecture.storage.kind in ("sparse", "quotient_remainder")
    storage = architecture.storage if own_bytes else architecture.mixed()
    for field in architecture.fields:
        dims = " ".join(f"{len(b.dims)}x{b.bits}" if few and b.dims else str(len(b.dims)) for b in field.blocks)
        entries = storage.parameters([field], architecture.dim, first_order=False)
        share = entries / (field.cardinality * architecture.dim)
        held = storage.bytes([field], architecture.dim, first_order=first_order(architecture))
        table.add_row(Text(field.name), f"{field.cardinality:,}", dims, f"{entries:,}", f"{share:.0%}", f"{held:,}")
    print_table(console, table)
    show_clusters(console, architecture)
    backbone = ", ".join(f"{name}={value}" for name, value in architecture.backbone.items())
    rounded = f", linear layers in {architecture.tower_bits} bits" if architecture.tower_bits < 32 else ""
    console.print(f"  width {architecture.dim}, backbone {backbone}{rounded}", soft_wrap=True)
    if architecture.storage.kind == "quotient_remainder":
        own, fields = architecture.storage, architecture.fields
        split = ", ".join(field.name for field in fields if len(own.parts(field.cardinality)) > 1) or "no field"
        console.print(f"  rows of remainders and quotients (`{own.combine}`) for {split}", soft_wrap=True)
    if cost := architecture.cost:
        console.print(
            f"  {cost.embedding_parameters:,} embedding parameters in {cost.embedding_bytes:,} bytes, "
            f"{cost.parameters:,} parameters in all in {cost.bytes:,} bytes",
            soft_wrap=True,
        )


def show_choices(console: Console, architecture: Architecture, synergy: pl.DataFrame | None) -> None:
    """Prints what is done with each pair, those that cost something first; nothing if there are no pairs."""
    if not architecture.pairs:
        return
    z = {} if synergy is None else {(a, b): z for a, b, z in synergy.select("a", "b", "synergy_z").iter_rows()}
    counts = Counter(pair.choice for pair in architecture.pairs)
    title = f"{len(architecture.pairs)} pairs: " + ", ".join(f"{count} {choice}" for choice, count in counts.items())
    table = make_table(title, "column", "with", "choice", "synergy z", "crossed ids", "of pairs", "parameters", left=3)
    colours = {"memorize": "dark_orange", "factorize": "blue"}
    for pair in architecture.built:
        crossed = pair.crossed * architecture.pair_dim if pair.choice == "memorize" else None
        table.add_row(
            Text(pair.a),
            Text(pair.b),
            Text(pair.choice, style=colours[pair.choice]),
            f"{z[pair.a, pair.b]:.1f}" if (pair.a, pair.b) in z else "-",
            f"{pair.crossed:,}" if pair.crossed else "-",
            f"{pair.distinct:,}" if pair.crossed else "-",
            "shared" if crossed is None else f"{crossed:,}",
        )
    print_table(console, table)
    if factors := architecture.factors():
        rows = sum(factors.values())
        console.print(
            f"  factorized pairs share the embeddings of {len(factors)} columns, "
            f"{rows * architecture.pair_dim:,} parameters"
        )


def show_clusters(console: Console, architecture: Architecture) -> None:
    """Prints how many dims each cluster's model keeps of each field, and how a row finds its own; or of an ensemble."""
    if ensemble := architecture.ensemble:
        shared = {"tables": "the tables", "all": "tables and backbone"}[ensemble.share]
        console.print(
            f"  an ensemble of {ensemble.members} members that share {shared}, the mean of whose logits counts"
        )
    if architecture.router is None:
        return
    clusters, router = architecture.clusters, architecture.router
    if router.kind == "all":
        console.print(f"  an ensemble of {len(clusters)} such models, the mean of whose logits counts")
        return
    title = f"{len(clusters)} clusters: mean dims kept of a field's values"
    table = make_table(title, "field", *(f"cluster {number}" for number in range(1, len(clusters) + 1)))
    for field in architecture.fields:
        kept = [{plan.name: plan.entries for plan in cluster.fields}.get(field.name) for cluster in clusters]
        cells = ("-" if entries is None else f"{entries / field.cardinality:.1f}" for entries in kept)
        table.add_row(Text(field.name), *cells)
    print_table(console, table)
    reads = ", ".join(field.name for field in router.fields)
    console.print(f"  a row's cluster is found by {router.kind} from {reads}", soft_wrap=True)


def show_bundle(console: Console, bundle: Bundle) -> None:
    """Prints a bundle's origin, metrics and architecture."""
    manifest = bundle.manifest
    show_architecture(console, bundle.architecture, f"bundle {bundle.path}")
    console.print(f"  made by autoembed {manifest.autoembed} at {manifest.created}")
    for name, facts in (("from", manifest.provenance), ("metrics", manifest.metrics)):
        console.print(Text(f"  {name}: {_plain(facts)}"), soft_wrap=True)


def _plain(facts: object) -> str:
    if isinstance(facts, dict):
        return ", ".join(
            f"{name} ({_plain(value)})" if isinstance(value, dict) else f"{name} {_plain(value)}"
            for name, value in facts.items()
        )
    return f"{facts:.4f}" if isinstance(facts, float) else str(facts)
