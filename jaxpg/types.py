"""The public path of `jaxpg.core.types`: the data that flows between the parts."""

from jaxpg.core.types import Algorithm as Algorithm
from jaxpg.core.types import Batch as Batch
from jaxpg.core.types import Distribution as Distribution
from jaxpg.core.types import Env as Env
from jaxpg.core.types import EnvSpec as EnvSpec
from jaxpg.core.types import EnvState as EnvState
from jaxpg.core.types import Fitted as Fitted
from jaxpg.core.types import Learned as Learned
from jaxpg.core.types import LearnerState as LearnerState
from jaxpg.core.types import Metrics as Metrics
from jaxpg.core.types import Moments as Moments
from jaxpg.core.types import Networks as Networks
from jaxpg.core.types import Noise as Noise
from jaxpg.core.types import Params as Params
from jaxpg.core.types import RewardScale as RewardScale
from jaxpg.core.types import Ring as Ring
from jaxpg.core.types import Seen as Seen
from jaxpg.core.types import Trajectory as Trajectory
