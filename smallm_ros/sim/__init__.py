"""The embedded world: the stand-in for Gazebo that needs no ROS, no display and little CPU.

    SDF file -> World (one value) -> Episode (MuJoCo, stepped in simulated time) -> topics

The file is the one that Gazebo loads; only `sim_node` knows ROS.
"""
