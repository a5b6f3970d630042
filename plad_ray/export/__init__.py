"""What leaves plad_ray: pairs in the formats of other trainers, adapters and pairs on a Hub."""
