Give the plugin its token (mode [[ var "mode" . ]]), if it has none yet:

[[ if eq (var "mode" .) "split" -]]
  nomad var put -namespace=[[ var "namespace" . ]] nomad/jobs/do-csi-controller token=@token.txt
[[- else -]]
  nomad var put -namespace=[[ var "namespace" . ]] nomad/jobs/do-csi-plugin token=@token.txt
[[- end ]]

Then wait until this shows healthy controllers and nodes:

  nomad plugin status [[ var "plugin_id" . ]]

A volume that exists is registered with plugin_id = [[ var "plugin_id" . | quote ]] and its id at DigitalOcean as external_id.
A new one is made with nomad volume create.
