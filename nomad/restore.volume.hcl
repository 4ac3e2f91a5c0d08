# Makes a new volume from a snapshot. Nomad 1.1 and later. `nomad volume snapshot create postgres NAME` and
# `nomad volume snapshot list` show the snapshot's id. The new volume is at least as large as the snapshot; when it is
# larger, its file system grows.
# nomad volume create restore.volume.hcl

id          = "postgres-restored"
name        = "postgres-restored"
type        = "csi"
plugin_id   = "digitalocean"
snapshot_id = "00000000-0000-0000-0000-000000000000"

capacity_min = "10GiB"
capacity_max = "100GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type = "xfs"
}
