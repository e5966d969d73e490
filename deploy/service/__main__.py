"""Serve a trained net over HTTP: `python -m deploy.service --weights F`."""

from deploy.service.launcher import main

if __name__ == "__main__":
    raise SystemExit(main())
