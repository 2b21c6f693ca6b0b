"""A conveyor that is drawn, not filmed: parts with known defects, for demos, tests and trials without a camera.

conveyor = Conveyor(seed=1, part_type="washer", height=480, width=640, channels=3, defect_rate=0.1)
part = conveyor.part(42)    # image uint8 [480, 640, 3], mask bool [480, 640], defect or None
"""

from edge.capture.simulation.defects import KINDS
from edge.capture.simulation.parts import PART_TYPES
from edge.capture.simulation.scene import Conveyor, Defect, Part

__all__ = ["KINDS", "PART_TYPES", "Conveyor", "Defect", "Part"]
