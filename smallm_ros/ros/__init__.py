"""The live robot: the nodes, and everything that knows a ROS message.

`convert` goes by attribute and imports no rclpy, so that a bag reader's messages do too.
"""
