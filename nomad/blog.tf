# The volume "blog", made by Terraform and formatted by DigitalOcean. The plugin can also do both (postgres.volume.hcl);
# what Terraform made, Terraform must delete.

terraform {
  required_providers {
    digitalocean = {
      source  = "digitalocean/digitalocean"
      version = "~> 2.0"
    }
  }
}

resource "digitalocean_volume" "blog" {
  name                    = "blog"
  region                  = "fra1"
  size                    = 10
  initial_filesystem_type = "xfs"
  description             = "Registered in Nomad as blog"

  lifecycle {
    prevent_destroy = true
    # The plugin puts its owner's tag on when it attaches the volume, and the next apply is not to take it off again.
    ignore_changes = [tags]
  }
}

output "blog_volume_id" {
  value = digitalocean_volume.blog.id
}
