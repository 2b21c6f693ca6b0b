"""A camera on loopback that speaks RTSP: GStreamer's own server, under the distribution's Python.

    /usr/bin/python3 rtsp_server.py PORT    # serves rtsp://127.0.0.1:PORT/line; says "ready" on standard output

A gray picture with a ball on it, 320 x 240 at 25 frames per second, as H.264 over RTP.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball background-color=0xff808080 "
    "! video/x-raw,format=I420,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 )"
)

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(PIPELINE)
factory.set_shared(True)
server.get_mount_points().add_factory("/line", factory)
if server.attach(None) == 0:
    sys.exit(f"port {sys.argv[1]} cannot be bound")
print("ready", flush=True)
GLib.MainLoop().run()
