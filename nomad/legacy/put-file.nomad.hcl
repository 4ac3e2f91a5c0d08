# Writes a file to the volume "blog" on one node; get-file.nomad.hcl then reads it on another.
# Nomad 0.11 and 1.0. Later versions want access_mode and attachment_mode in the volume block, as the file of this name
# one directory up has them.

job "put-file" {
  datacenters = ["dc1"]
  type        = "batch"

  # The name of the client to run on, as `nomad node status` shows it.
  constraint {
    attribute = "${node.unique.name}"
    value     = "NODE_A"
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
      type      = "csi"
      source    = "blog"
      read_only = false
    }

    task "put-file" {
      driver = "docker"

      config {
        image   = "docker.io/library/busybox:1.36"
        command = "/bin/sh"
        # What a container prints just before it ends may miss Nomad's log (hashicorp/nomad#6931).
        args = ["-c", "echo 'hello from NODE_A' > /blog/hello && cat /blog/hello && sleep 2"]
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
