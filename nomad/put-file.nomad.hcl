# Writes a file to the volume "blog" on one node. Nomad 1.1 and later. get-file.nomad.hcl then reads it on another node.

variable "node" {
  type        = string
  description = "The name of the client to run on, as `nomad node status` shows it"
}

variable "image" {
  type    = string
  default = "docker.io/library/busybox:1.36"
}

variable "datacenters" {
  type        = list(string)
  default     = ["*"]
  description = "Where to run; Nomad before 1.5 takes no wildcard: -var='datacenters=[\"dc1\"]'"
}

variable "namespace" {
  type    = string
  default = "default"
}

job "put-file" {
  type        = "batch"
  datacenters = var.datacenters
  namespace   = var.namespace

  constraint {
    attribute = "${node.unique.name}"
    value     = var.node
  }

  group "put-file" {
    # By default Nomad tries a batch job that could not start once more in 24 hours. A volume may still be attached to
    # another node, so it should try sooner.
    reschedule {
      attempts       = 20
      interval       = "1h"
      delay          = "15s"
      delay_function = "constant"
      unlimited      = false
    }

    volume "blog" {
      type            = "csi"
      source          = "blog"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "put-file" {
      driver = "docker"

      config {
        image   = var.image
        command = "/bin/sh"
        # What a container prints just before it ends may miss Nomad's log (hashicorp/nomad#6931).
        args = ["-c", "echo \"hello from $NODE\" > /blog/hello && cat /blog/hello && sleep 2"]
      }

      env {
        NODE = var.node
      }

      volume_mount {
        volume      = "blog"
        destination = "/blog"
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
