"""The commands `weights list`, `weights fetch` and `weights verify`."""

import click

from job.console.log import LOG
from job.console.options import PLACE, with_output_options
from job.errors import UsageError


@click.group()
def weights() -> None:
    """List, fetch and verify pre-trained weights, for machines without a network.

    \b
      transfer-job weights fetch mobilenet_v2 dinov2_small --to weights/   on a machine with a network
      transfer-job run ... --weights weights/                              on a machine without one
    """


@weights.command("list")
@with_output_options
def list_weights() -> None:
    """List all names with their licences, and where the weights come from."""
    from job.model.weights import known_weights

    known = known_weights()
    lines = [f"{one.name:<26}{one.licence:<22}{one.source}" for one in known]
    LOG.finish(*lines, weights=[one._asdict() for one in known])


@weights.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--to",
    required=True,
    metavar="DIR",
    type=PLACE,
    help="Folder, or gs:// or s3:// prefix. Files that are in it stay as they are.",
)
@with_output_options
def fetch(names: tuple[str, ...], to: str) -> None:
    """Copy weights into DIR. Those that this machine does not have are downloaded.

    NAME is one of those that weights list prints, or hub:PRESET; for MobileNets NAME[:alpha=A][:image_size=S].
    """
    from job.model.weights import fetch_weights
    from job.runtime.session import Session
    from job.runtime.stop import STOP

    found = []
    for one in fetch_weights(names, to, session=Session(STOP)):
        found.append(one._asdict())
        LOG.show(f"{one.name}: {'from ' + one.source if one.is_new else 'already there'}. Licence: {one.licence}")
    LOG.finish(f"Use them with --weights {to}", weights=found)


@weights.command()
@click.argument("directory", metavar="DIR", type=PLACE)
@with_output_options
def verify(directory: str) -> None:
    """Compare weights with the digests that were written when they were fetched. DIR is the --to of weights fetch."""
    from job.model.weights import verify_weights

    found = verify_weights(directory)
    LOG.show(*(f"{one.state:<8}{one.path}" for one in found))
    if wrong := [one for one in found if one.state != "ok"]:
        names = " ".join(dict.fromkeys(one.name for one in wrong))
        raise UsageError(
            f"{directory}: {len(wrong)} of {len(found)} files are changed or missing. Remove the changed ones, and run "
            f"transfer-job weights fetch {names} --to {directory}"
        )
    LOG.finish(f"All {len(found)} files are as they were fetched.", files=[one._asdict() for one in found])
