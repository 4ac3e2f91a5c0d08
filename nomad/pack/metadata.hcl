app {
  url = ""
}

pack {
  name        = "do_csi_plugin"
  description = "Volumes of DigitalOcean: the CSI plugin as one job, or as a controller job and a node job."
  url         = ""
  version     = "0.2.0"
}
