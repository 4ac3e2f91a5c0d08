# Reads the file that put-file.nomad.hcl has written, on another node. Nomad 1.1 and later.

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

job "get-file" {
  type        = "batch"
  datacenters = var.datacenters
  namespace   = var.namespace

  constraint {
    attribute = "${node.unique.name}"
    value     = var.node
  }

  group "get-file" {
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
      # The volume is attached as always, and mounted so that nothing can be written.
      read_only = true
    }

    task "get-file" {
      driver = "docker"

      config {
        image   = var.image
        command = "/bin/sh"
        # What a container prints just before it ends may miss Nomad's log (hashicorp/nomad#6931).
        args = ["-c", "cat /blog/hello && sleep 2"]
      }

      volume_mount {
        volume      = "blog"
        destination = "/blog"
        read_only   = true
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
