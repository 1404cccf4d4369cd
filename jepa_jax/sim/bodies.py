"""Sizes of what stands on the table and of the arm, in meters and radians; nothing here ever changes.

The tool's frame has its origin between the finger tips. With all angles at 0 it is parallel to the
robot's base: the gripper points straight down, and its fingers open along y.
"""

import numpy as np

# Objects, in the order of `State.objects`. Both stand on their lower face.
OBJECTS = ("box", "cup")
NUM_OBJECTS = len(OBJECTS)
BOX_HALF = 0.036
CUP_RADIUS = 0.037
CUP_WALL = 0.008
CUP_HALF_HEIGHT = 0.045
# Where the fingers touch, and what keeps others away: half the width, and half the height.
OBJECT_RADII = np.float32([BOX_HALF, CUP_RADIUS])
OBJECT_HALF_HEIGHTS = np.float32([BOX_HALF, CUP_HALF_HEIGHT])
# Turning by this about the vertical, an object is gripped the same way: the cup's handle stays between the fingers.
OBJECT_SYMMETRIES = np.float32([np.pi / 2, np.pi])

PLATE_RADIUS = 0.085
PLATE_HEIGHT = 0.008

# Each finger reaches from below the tool's origin up to the palm.
FINGER_HALF = np.float32([0.016, 0.012, 0.05])
FINGER_BELOW = 0.015
# From the middle to the inner face of an open finger: an object 5 cm off still fits between them.
FINGER_STROKE = 0.086
PALM_HALF = np.float32([0.024, 0.116, 0.02])
PALM_HEIGHT = 2 * float(FINGER_HALF[2]) - FINGER_BELOW + float(PALM_HALF[2])
WRIST_HALF = np.float32([0.032, 0.032, 0.035])
WRIST_HEIGHT = PALM_HEIGHT + float(PALM_HALF[2]) + float(WRIST_HALF[2])
# How closed the fingers are when they touch each object, in [0, 1].
CONTACT_CLOSEDNESS = 1 - OBJECT_RADII / FINGER_STROKE

# The arm, from the shoulder over the elbow to the end of the wrist.
SHOULDER = np.float32([0.0, 0.0, 0.36])
UPPER_ARM = 0.45
FOREARM = 0.45
ARM_RADIUS = 0.042
WRIST_END = WRIST_HEIGHT + float(WRIST_HALF[2])

# The table's top is the plane z = 0; (x, y) of two corners.
TABLE_LOW, TABLE_HIGH = np.float32([-0.12, -0.62]), np.float32([0.98, 0.62])
# Where objects can be: the gripper's reach and a little more.
OBJECTS_LOW, OBJECTS_HIGH = np.float32([0.22, -0.36]), np.float32([0.74, 0.36])
