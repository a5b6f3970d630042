"""KubeRay manifests from one values file: rendered, and checked against what an experiment needs."""
