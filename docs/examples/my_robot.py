"""The same simulator, with what the robot must know."""

from dataclasses import replace

from my_batch import Reach

from supple.envs.base import Channel, Deployment


class Gantry(Reach):
    """The point is carried by two position servos."""

    def __init__(self, num_envs=8, device="cpu"):
        super().__init__(num_envs, device)
        self.spec = replace(
            self.spec,
            control_dt=0.02,
            channels=(
                Channel(name="x_pos", group="policy", unit="m", low=-2, high=2, noise=0.001),
                Channel(name="y_pos", group="policy", unit="m", low=-2, high=2, noise=0.001),
            ),
            deployment=Deployment(
                joint_names=("x", "y"),
                robot_joint_names=("y", "x"),  # the order of the robot's own software
                control_mode="delta",
                action_scale=(0.1, 0.1),
                action_offset=(0.0, 0.0),
                stiffness=(800.0, 800.0),
                damping=(40.0, 40.0),
                default_position=(0.0, 0.0),
                position_limit_low=(-2.0, -2.0),
                position_limit_high=(2.0, 2.0),
                effort_limit=(60.0, 60.0),
            ),
        )
