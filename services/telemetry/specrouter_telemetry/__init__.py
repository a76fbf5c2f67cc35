"""What levels and routers measure, for Prometheus to scrape and for OpenTelemetry collectors."""
