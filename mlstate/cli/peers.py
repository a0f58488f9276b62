"""The command that sets up caches which nodes share: `peers`."""

from __future__ import annotations

from typing import Annotated

import typer

from mlstate.cli.options import Json, Overwrite
from mlstate.cli.output import from_here, note, print_json, put

__all__ = ["peers"]


def peers(
    origin: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The http(s) address of the folder that has objects/: a store behind a web "
            "server, a public bucket, or what signs requests to a private one.",
        ),
    ],
    nodes: Annotated[
        str,
        typer.Option(
            metavar="NODES", help="The nodes' names or addresses, with commas between: a,b,c."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")
    ],
    port: Annotated[
        int,
        typer.Option(help="The port for a node's own programs; nodes use the next one."),
    ] = 9470,
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The disk that the cache of a node may take.")
    ] = "200GB",
    cache: Annotated[
        str, typer.Option(metavar="PATH", help="The folder of that cache, on the nodes.")
    ] = "/var/cache/mlstate-peers",
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address for a node's own programs; '*' for those in containers.",
        ),
    ] = "127.0.0.1",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write what lets the nodes of a cluster share what each has fetched: nginx, set up for it.

    Every node runs nginx with the same file. Each object crosses the line to the origin once,
    however many nodes start at once; a node that is down is passed over. Programs use it with
    MLSTATE_PEERS set to the address that is printed; mlstate doctor then checks all nodes.
    """
    from mlstate.operations.peers.write import write_peers

    named = [node.strip() for node in nodes.split(",")]
    done = write_peers(
        origin,
        [node for node in named if node],
        output,
        port=port,
        max_size=max_size,
        cache=cache,
        listen=listen,
        overwrite=overwrite,
    )
    if as_json:
        print_json("peers", done)
        return
    for file in done.files:
        put(from_here(file))
    note(
        f"each file says at its top how it is installed; then: export MLSTATE_PEERS={done.address}"
    )
