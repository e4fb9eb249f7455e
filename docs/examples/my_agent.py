"""FlashSAC with a critic of one's own: Huber loss, and the mean of the members, not the least."""

import torch.nn.functional as F

from supple.agents import FlashSAC
from supple.agents.critics import ScalarCritic


class HuberCritic(ScalarCritic):
    """Values (E, B) of E members for B rows."""

    joins = "mean"  # diagnostics read values so

    def climbed(self, prediction, uniform_BR=None):
        return prediction.mean(0)

    def target(self, prediction, reward_B, discount_B, entropy_B, uniform_BR=None):
        target_B = reward_B + discount_B * (prediction.mean(0) - entropy_B)
        return target_B, target_B.new_zeros(())  # nothing is clipped

    def loss(self, prediction, target, uniform_BR=None):
        return F.huber_loss(prediction, target.expand_as(prediction))


class HuberSAC(FlashSAC):
    def build_critic(self, size, generator):
        return HuberCritic(size, generator=generator)
