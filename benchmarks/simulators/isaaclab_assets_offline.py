"""The two assets Isaac Lab's cartpole needs, made from what is installed: no asset server.

``make_assets(folder)``, then ``ISAACSIM_ASSET_ROOT=folder`` before Isaac Lab is imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

CARTPOLE = "Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd"
GROUND = (
    "Isaac/IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"
)
PLANE = """#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)
def Xform "World"
{
    def Xform "GroundPlane"
    {
        def Plane "CollisionPlane" (prepend apiSchemas = ["PhysicsCollisionAPI"])
        {
            uniform token axis = "Z"
            uniform token purpose = "guide"
        }
    }
}
"""


def make_assets(folder: Path) -> None:
    """Write Newton's own cartpole and a bare plane where Isaac Lab looks for its own."""
    found = importlib.util.find_spec("newton")
    assert found is not None and found.submodule_search_locations
    packaged = Path(found.submodule_search_locations[0]) / "examples/assets"
    text = (packaged / "cartpole_single_pendulum.usda").read_text()
    # The file's default prim is spelled unlike the prim it means.
    text = text.replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"')
    for name, content in ((CARTPOLE, text), (GROUND, PLANE)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
