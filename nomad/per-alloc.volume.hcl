# One volume for each allocation of per-alloc.nomad.hcl. Nomad 1.1 and later. Create it twice: as it stands, and with
# [1] in place of [0].
# nomad volume create per-alloc.volume.hcl

id        = "data[0]"
name      = "data[0]"
type      = "csi"
plugin_id = "digitalocean"

capacity_min = "1GiB"
capacity_max = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type = "ext4"
}
