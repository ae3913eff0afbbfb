"""The asset graph as a Mermaid drawing, made from the definitions: `python -m hair_pipeline.orchestration.drawing`.

Belongs here: the drawing in docs/architecture.md. Does not belong here: any knowledge of which assets there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from hair_pipeline.files import write_bytes
from hair_pipeline.orchestration.build import build_defs
from hair_pipeline.orchestration.owners import OWNERS
from hair_pipeline.settings import PROJECT_ROOT, Settings

BEGIN, END = "<!-- drawn from the definitions -->", "<!-- end of the drawing -->"
PAGE = PROJECT_ROOT / "docs" / "architecture.md"


def mermaid(graph: AssetGraph) -> str:
    """One box per group, one node per asset: green on the GPU, a hexagon where it is partitioned by shard."""
    return "\n".join(_lines(graph))


def _lines(graph: AssetGraph) -> Iterator[str]:
    yield "flowchart TD"
    for group in OWNERS:
        yield f"  subgraph {group}"
        for key in graph.toposorted_asset_keys:
            node = graph.get(key)
            if node.group_name == group:
                name = key.to_user_string()
                mark = "gpu" if node.is_executable and _on_gpu(graph, name) else "cpu"
                left, right = ("{{", "}}") if node.is_partitioned else ("[", "]")
                yield f"    {name}{left}{name}{right}:::{mark}"
        yield "  end"
    for key in graph.toposorted_asset_keys:
        for parent in sorted(graph.get(key).parent_keys):
            yield f"  {parent.to_user_string()} --> {key.to_user_string()}"
    yield "  classDef gpu fill:#d9ead3,stroke:#38761d,color:#000"
    yield "  classDef cpu fill:#f3f3f3,stroke:#666,color:#000"


def _on_gpu(graph: AssetGraph, name: str) -> bool:
    return any(
        assets.op.tags.get("hair_pipeline/accelerator") == "gpu"
        for assets in graph.assets_defs
        if assets.is_executable and name in {key.to_user_string() for key in assets.keys}
    )


def redrawn(page: str) -> str:
    """The page with the drawing between its two marks made anew."""
    graph = build_defs(settings=Settings(profile="sample")).resolve_asset_graph()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n```mermaid\n{mermaid(graph)}\n```\n\n{END}{after}"


def main(page: Path = PAGE) -> None:
    """Draw it into docs/architecture.md."""
    write_bytes(page, redrawn(page.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
