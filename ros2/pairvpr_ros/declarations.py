"""Declares the node's parameters to ROS, with description, range and whether they may be changed."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from pairvpr.errors import PairVPRError
from pairvpr_ros.parameters import Description, Parameters

KINDS = {bool: "true or false", int: "a whole number", float: "a number with a point, as 5.0", str: "a text"}


def declare(node: Node) -> None:
    """Declare all parameters; raises PairVPRError for a value of another type or out of range."""
    for name, (default, description) in Parameters.describe().items():
        try:
            node.declare_parameter(name, default, descriptor(default, description))
        except InvalidParameterTypeException as error:
            told = f"the parameter {name} is not of its type: write {KINDS[type(default)]}"
            raise PairVPRError(told) from error
        except InvalidParameterValueException as error:
            limits = f"{description.low:g} to {description.high:g}"
            raise PairVPRError(f"the parameter {name} is out of range: set it to {limits}") from error


def descriptor(default: Any, description: Description) -> ParameterDescriptor:
    """Return what ROS is told of a parameter."""
    low, high = description.low, description.high
    ranges: dict[str, Any] = {}
    if low is not None and high is not None:
        if isinstance(default, int):
            ranges["integer_range"] = [IntegerRange(from_value=int(low), to_value=int(high))]
        else:
            ranges["floating_point_range"] = [FloatingPointRange(from_value=low, to_value=high)]
    return ParameterDescriptor(description=description.text, read_only=not description.settable, **ranges)
