from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

settings.register_profile(
    "rnnjit",
    derandomize=True,
    deadline=None,
    database=None,
    # A slow or busy machine is no finding.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("rnnjit")
