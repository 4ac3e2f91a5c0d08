# Registers a volume that is there already, as Terraform (blog.tf) or the control panel made it.
# nomad volume register blog.volume.hcl

id        = "blog"
name      = "blog"
type      = "csi"
plugin_id = "digitalocean"

# The volume's id at DigitalOcean: terraform output blog_volume_id, or doctl compute volume list
external_id = "00000000-0000-0000-0000-000000000000"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

mount_options {
  fs_type     = "xfs"
  mount_flags = ["noatime"]
}
