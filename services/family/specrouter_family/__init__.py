"""The family file and the routing policy: types that routers, the launcher and the operator share."""
