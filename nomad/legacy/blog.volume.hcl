# Registers a volume. Nomad 0.11 and 1.0, which want access_mode and attachment_mode at the top of the file.
# nomad volume register blog.volume.hcl

id        = "blog"
name      = "blog"
type      = "csi"
plugin_id = "digitalocean"

# The volume's id at DigitalOcean, as `doctl compute volume list` shows it.
external_id = "00000000-0000-0000-0000-000000000000"

access_mode     = "single-node-writer"
attachment_mode = "file-system"

mount_options {
  fs_type     = "xfs"
  mount_flags = ["noatime"]
}
