# Registers a volume that exists already, made by Terraform (blog.tf) or in the control panel. Nomad 1.1 and later.
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
