<?php
// Replies once with a status that the protocol does not have.
while (($line = fgets(STDIN)) !== false) {
    $request = json_decode($line, true);
    $mark = $request["payload"]["args"][0];
    $status = "ok";
    if (!file_exists($mark)) {
        touch($mark);
        fwrite(STDERR, "grandchild " . exec("sleep 600 >/dev/null 2>&1 & echo $!") . "\n");
        $status = "done";
    }
    $reply = ["id" => $request["id"], "status" => $status, "result" => getmypid()];
    fwrite(STDOUT, json_encode($reply) . "\n");
}
