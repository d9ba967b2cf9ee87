"""One function a stage; no stage knows another."""
