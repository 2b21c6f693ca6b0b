"""GigE Vision cameras through Aravis' C library, by ctypes: nothing to build, nothing to bind.

`library` declares the functions, `features` reads and checks GenICam features, `camera` opens and configures,
`discovery` searches, `network` knows what this computer allows, `stream` receives frames into slots of the ring.
The source that capture uses is `edge.capture.gige`.
"""
