# Makes a volume at DigitalOcean and registers it. Nomad 1.1 and later. To grow it later, raise capacity_min and run the
# same command again, which needs Nomad 1.6.3. A volume never gets smaller.
# nomad volume create postgres.volume.hcl

id        = "postgres"
name      = "postgres"
type      = "csi"
plugin_id = "digitalocean"

capacity_min = "10GiB"
capacity_max = "100GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type     = "xfs"
  mount_flags = ["noatime"]
}

# What else can be set is in the plugin's docs/settings.md and docs/csi.md.
parameters {
  tags = "nomad,postgres"
}
