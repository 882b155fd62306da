<?php
// Debug output of the user's code on stdout, before the reply.
while (($line = fgets(STDIN)) !== false) {
    $request = json_decode($line, true);
    echo "processing ", $request["id"], "\n";
    echo json_encode(["id" => $request["id"], "status" => "ok"]), "\n";
    flush();
}
