"""The program around the node: signals end it in order, whenever they come and however often."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main(args: list[str] | None = None) -> None:
    """Run the node until it is stopped; exit code 2 and one line for a fault that its user can mend."""
    # Only the thread below takes signals: no import, callback or clean-up is ever interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    import rclpy
    import rclpy.logging
    from rclpy._rclpy_pybind11 import RCLError, UnknownROSArgsError
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    from rclpy.task import Future

    from pairvpr.errors import PairVPRError
    from pairvpr_ros import names
    from pairvpr_ros.node import VisualLocalization

    def refuse(fault: str) -> NoReturn:
        rclpy.logging.get_logger(names.NODE).fatal(fault)
        sys.exit(2)

    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RCLError as error:  # ends with the place in ROS's own source
        refuse(str(error).partition(", at /")[0])
    except UnknownROSArgsError as error:
        refuse(f"these arguments after --ros-args are unknown: {error}")
    stopped: Future = Future()
    loaded = threading.Event()

    def wait_for_signal() -> None:
        signal.sigwait(SIGNALS)
        if not loaded.is_set():  # a model may take minutes to load, and there is nothing to close yet
            os._exit(0)
        stopped.set_result(None)

    threading.Thread(target=wait_for_signal, name="signals", daemon=True).start()
    try:
        node = VisualLocalization()
    except PairVPRError as error:
        rclpy.try_shutdown()
        refuse(str(error))
    try:
        if node.get_parameter("autostart").value:
            node.start()
        loaded.set()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stopped.done() and rclpy.ok():
            try:
                executor.spin_until_future_complete(stopped)
            except RCLError as error:  # rclpy raises it here for a transition that a client must not ask for
                node.get_logger().error(str(error))
        executor.shutdown()
    except PairVPRError:  # logged by the node
        sys.exit(2)
    finally:
        loaded.set()
        node.close()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
