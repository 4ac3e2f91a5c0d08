# Two allocations, each with a volume of its own: data[0] and data[1], made by per-alloc.volume.hcl. Nomad 1.1 and later.

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

job "per-alloc" {
  type        = "service"
  datacenters = var.datacenters
  namespace   = var.namespace

  group "worker" {
    count = 2

    reschedule {
      delay          = "10s"
      delay_function = "exponential"
      max_delay      = "2m"
      unlimited      = true
    }

    volume "data" {
      type            = "csi"
      source          = "data"
      per_alloc       = true
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "worker" {
      driver = "docker"

      config {
        image   = var.image
        command = "/bin/sh"
        args    = ["-c", "echo \"$NOMAD_ALLOC_INDEX\" >> /data/index; trap 'exit 0' TERM; while :; do sleep 1; done"]
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
