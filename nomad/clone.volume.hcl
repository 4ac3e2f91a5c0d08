# Makes a copy of a volume, through a snapshot that is deleted again. Nomad 1.1 and later.
# DigitalOcean takes one snapshot of a volume in ten minutes. Stop what writes to the volume first; otherwise the copy is
# as after a power failure.
# nomad volume create clone.volume.hcl

id        = "postgres-copy"
name      = "postgres-copy"
type      = "csi"
plugin_id = "digitalocean"

# The volume's id at DigitalOcean, as `nomad volume status postgres` shows it (External ID).
clone_id = "00000000-0000-0000-0000-000000000000"

capacity_min = "10GiB"
capacity_max = "100GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type = "xfs"
}
