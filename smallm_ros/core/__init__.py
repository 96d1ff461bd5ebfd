"""What decides. Touches nothing: no clock, no socket, no ROS; stdlib, numpy, pydantic.

Reading the modules in this order is reading the program: policy, observation, summary, reference,
prompt, action, tree, budget, exchange, pilot, envelope, baseline, gate, decision_record.
"""
